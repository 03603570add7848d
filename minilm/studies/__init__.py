"""Studies: many trainings compared, a law fitted through them, and what a budget buys."""
