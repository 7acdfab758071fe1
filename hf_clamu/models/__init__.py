"""Models as users meet them: configuration, `ClamuModel`, files, receipts."""
