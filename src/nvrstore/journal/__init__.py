"""The volume format: headers, batches, ledger records, index, and the scan that tells a torn tail from damage."""
