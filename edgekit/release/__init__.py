"""From a bundle to a release: signed, with a bill of materials, provenance, evidence and notices that foreign tools read."""
