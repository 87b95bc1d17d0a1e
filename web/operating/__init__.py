"""What operators and the registry ask for: actors, diagnoses, rights, trails, the database, the status."""
