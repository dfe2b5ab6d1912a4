"""What protocol/ promises, checked against real servers where there is one to ask."""
