package transfer

// MaxNodes is for tests.
const MaxNodes = maxNodes
