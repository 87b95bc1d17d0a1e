"""Files as every room needs them: private, whole when they have their name, in a directory that can be trusted."""
