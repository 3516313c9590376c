// Package resolve finds out which packages an image would hold, or why it
// cannot be built. It is pure: it knows neither where indices come from nor
// who asks.
package resolve
