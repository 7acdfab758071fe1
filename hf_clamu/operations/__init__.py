"""Changes of a merged model: build, unmerge, add, update, rebuild; receipts, pending changes, queues."""
