"""Calls of functions in workers: requests, answers, futures and executors."""
