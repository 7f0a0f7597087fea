"""What is added to the token embedding or handed to layers beside it; one idea a file."""
