package sandbox

// Namespaced lets the contract know which promises a level makes.
func (l Level) Namespaced() bool { return l.namespaced() }

// KillUser is what ends, at LevelProcess, what forks too fast to be found.
var KillUser = killUser
