"""What every part uses and nothing of ours is imported by: files, number formats, quiet libraries."""
