"""`hisparse stress`: a real server under load and faults, against what every byte has to be."""
