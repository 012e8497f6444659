# A straight line through the braking distances that come with R.
line <- lm(dist ~ speed, cars)
write.csv(coef(line), "line.csv")
