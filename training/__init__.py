"""Training: data, objectives, tasks, one loop. Knows models; must not know export, bundles or engines."""
