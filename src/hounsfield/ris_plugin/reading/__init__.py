"""What is read and written: the reading list, reports and their versions, templates."""
