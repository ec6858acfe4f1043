"""What workers are sent: the source of this package and of users, read, lowered and packed."""
