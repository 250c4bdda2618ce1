"""Lists of our selection, in the form that SGLang's attention takes."""
