"""Ways to look at credit: a page for the browser and a form for the terminal."""
