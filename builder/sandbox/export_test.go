package sandbox

// Namespaced lets the contract know which promises a level makes.
func (l Level) Namespaced() bool { return l.namespaced() }
