"""Reports of training runs, made from their run folders alone."""
