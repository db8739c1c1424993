"""What ships: a folder, or its archive, that an app embeds, and the evidence beside it."""
