"""The capstone: every deliverable of a course on small GPTs, made by one command that can be stopped anywhere."""
