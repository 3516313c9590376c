//go:build race

package sandbox_test

// raceDetector: it takes more memory than a job may have.
const raceDetector = true
