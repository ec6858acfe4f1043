"""``Group.tree``: workers that are reached through each other.  Start at ``plan``."""
