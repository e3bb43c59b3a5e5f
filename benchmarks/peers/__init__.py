"""The peers: the same weights through other people's tools, measured beside ours in the same rounds."""
