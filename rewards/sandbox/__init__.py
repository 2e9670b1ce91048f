"""Run a program and its tests in bubblewrap, each in a sandbox of its own."""
