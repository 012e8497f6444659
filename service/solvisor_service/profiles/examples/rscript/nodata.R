# R exits with 1.
stop("no measurements in this folder")
