"""Imports that travel: modules of the coordinator that workers import as source."""
