"""Workers that dial in: whoever can start a command anywhere can give a group workers."""
