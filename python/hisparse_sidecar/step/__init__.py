"""One decode step or prefill chunk: its rows and tables, checked, laid out, recorded as a graph."""
