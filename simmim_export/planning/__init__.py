"""The search for the fastest precision plan within an accuracy budget."""
