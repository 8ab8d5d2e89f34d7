"""Commands about results: score saved ones, put them on the leaderboard, build it, hand them on."""
