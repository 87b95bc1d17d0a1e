"""One server: its settings, its log, the application and the root that composes all parts."""
