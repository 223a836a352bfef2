"""What an exported file must prove: certificate, parity, accuracy."""
