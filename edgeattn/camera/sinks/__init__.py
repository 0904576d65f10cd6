"""Where results go: a picture to look at, numbers to scrape, a recording, lines for programs."""
