"""Networks that the project makes itself, to prove the conversion on, and the proof itself (`corpus.proof`)."""
