"""What several tests build on. Importing it imports nothing: processes of rewards pass through here."""
