"""One page for people who were not there, HTML or Markdown, from result files."""
