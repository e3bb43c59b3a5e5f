"""The machine that this runs on: child processes, telemetry of packages."""
