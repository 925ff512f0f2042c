"""One run, or several as one: parts are assembled, trained, tested and recorded."""
