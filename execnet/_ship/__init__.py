"""What is sent to workers: source of this package and of users, read, lowered and packed."""
