"""Many pictures on many processors or machines: `nmsfree batch`. Needs the extra `ray`."""
