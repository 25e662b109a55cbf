package hook

// ReadAnswer is what the hook does with an answer.
var ReadAnswer = readAnswer
