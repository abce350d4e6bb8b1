"""Protocol messages, generated from the .proto files beside this one (`make protos`)."""
