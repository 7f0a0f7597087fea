"""What is added to the token embedding or handed to layers next to it; one idea a file."""
