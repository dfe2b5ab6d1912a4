"""The proof of promotion: faults made to real servers under load, and a checker of what clients were told."""
