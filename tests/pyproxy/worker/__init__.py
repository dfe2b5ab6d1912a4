"""What a worker promises."""
