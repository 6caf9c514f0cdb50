"""The heart: texts become batches of token ids, batches become rows, rows become answers; no HTTP and no device."""
