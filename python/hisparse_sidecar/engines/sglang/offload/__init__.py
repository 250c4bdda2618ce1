"""SGLang with `--enable-hisparse`: KV rows and index keys on a tier of ours."""
