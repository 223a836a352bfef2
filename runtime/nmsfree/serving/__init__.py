"""HTTP server: `nmsfree serve`. Needs the extra `serve`."""
