"""Reports: two runs become one comparison, shown on the terminal, as figures and as a page."""
